"""What doors share. No framework is imported here."""
