"""Looking at a data set before it is used: pairs, files, label values, class histogram, pictures."""

from ovseg.data.inspection.check import Finding, Report, check_dataset
from ovseg.data.inspection.sheet import choose_pairs, draw_sheet
from ovseg.data.inspection.subject import Subject, open_subject

__all__ = ["Finding", "Report", "Subject", "check_dataset", "choose_pairs", "draw_sheet", "open_subject"]
