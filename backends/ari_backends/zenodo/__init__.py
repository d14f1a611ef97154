"""Zenodo, and every other repository that runs InvenioRDM."""
