"""Images: the CSV that names them, reading, checking and keeping them, kinds of harm, and training on them here."""
