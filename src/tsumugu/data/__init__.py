"""Rows in and rows out: text, JSON, CSV and Parquet read a row at a time, results written whole or not at all."""
