"""The only ring that uses Flask's request and current_app."""
