"""What is wrong with a setup, each with one hint: what ``mesh doctor`` prints."""

from meshlib.doctor.case import Case, Finding, Outcome, Report
from meshlib.doctor.examination import examine

__all__ = ["Case", "Finding", "Outcome", "Report", "examine"]
