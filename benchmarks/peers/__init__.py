"""What a user would run instead of ours."""
