"""What is here and what is missing (`evalspec doctor`), and whether it computes rightly and how fast (`--selftest`)."""
