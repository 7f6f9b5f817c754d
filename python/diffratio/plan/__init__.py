"""What compression would cost and save, before anything is trained."""
