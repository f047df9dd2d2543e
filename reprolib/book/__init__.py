"""From measurements to pages: parts, records, claims, verdicts, figures, the scoreboard, the report.

It measures nothing: a change here leaves every record as it is.
"""
