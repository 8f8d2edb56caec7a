"""The routes that OpenAI has too: files, batches, models, completions. Programs change their base URL alone."""
