"""`piwsl report`: tables over seeds, pages and figures."""
