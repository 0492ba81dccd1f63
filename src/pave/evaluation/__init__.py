"""Asking and scoring: answers with or without a patch, metrics with their uncertainty, runs, reports."""
