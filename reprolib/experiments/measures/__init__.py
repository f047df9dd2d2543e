"""The measures of the chapters' experiments, a file for each chapter: what the ledger is told of a table.

Every function takes what an experiment returned and gives measures by name, as `Chapter.measure` enters them: an
interval, `Measured` with the conditions it was taken under, or `Unmeasured` with the reason. The names are those that
`claims/` declares.
"""
