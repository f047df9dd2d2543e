"""From measurements to pages: parts, records, claims, verdicts, figures, the report. It measures nothing itself."""
