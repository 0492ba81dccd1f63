"""What is compared: each section names its runs, and writes its part of the page from their answers."""
