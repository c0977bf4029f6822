"""Labelling of many images: a pipeline, records that make it resumable, label formats, a contact sheet."""
