"""The page that `convkit evaluate` writes: `document` puts its parts together."""
