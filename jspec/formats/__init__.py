"""Files of other projects, read and written: models in Hugging Face's layout."""
