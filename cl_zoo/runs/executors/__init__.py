"""Where the runs of a comparison are made: in processes here, or on other machines that share the folder of the runs."""
