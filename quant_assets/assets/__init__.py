"""The asset graph: one file per stage; what stages share is in conventions, partitions, previews.

Jobs, schedules, sensors and checks belong in automation; the work itself in the packages below.
"""
