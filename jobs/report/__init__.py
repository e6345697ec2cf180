"""The report as one HTML file: no network, no script, light and dark, to be printed and read by keyboard."""
