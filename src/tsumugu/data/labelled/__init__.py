"""Labelled data: the formats people have, read into one typed form for each kind of task, checked row by row."""
