"""Numbers from predictions, whoever made them. numpy only."""
