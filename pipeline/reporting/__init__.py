"""The report: what is read for it, how it is put into words, tables and pictures, and its pages."""
