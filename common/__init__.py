"""What several settings share. Imports go one way: see CONTRIBUTING.md for the order of the folders."""
