"""Records traces, replays stop rules on them, and fits the predictor of accepted drafts."""
