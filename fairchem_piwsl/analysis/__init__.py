"""`piwsl evaluate`, `consistency`, `profile`: how good a trained model is."""
