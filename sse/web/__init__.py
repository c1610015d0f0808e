"""The only ring that knows Flask's request and current_app."""
