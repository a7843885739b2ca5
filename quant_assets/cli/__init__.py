"""The command line: one file per command, plus shared options and output.

Commands parse, call and print; a decision belongs to the folder of its subject.
"""
