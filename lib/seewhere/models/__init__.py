"""What a model can be asked, and the models that answer."""
