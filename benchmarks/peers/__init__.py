"""The peers: one file each, run by an interpreter that has that peer installed and nothing of ours."""
