"""`piwsl md`: molecular dynamics with trained models."""
