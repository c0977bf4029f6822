"""Check of a data set before it is used: pairs, files, label values, class histogram, contact sheet."""

from ovseg.data.check.contact_sheet import choose_pairs, draw_sheet
from ovseg.data.check.dataset import Finding, Report, Subject, check_dataset, open_subject

__all__ = ["Finding", "Report", "Subject", "check_dataset", "choose_pairs", "draw_sheet", "open_subject"]
