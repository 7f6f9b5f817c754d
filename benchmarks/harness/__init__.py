"""Measuring: from subjects and their candidates to rows of results, whatever the suite is."""
