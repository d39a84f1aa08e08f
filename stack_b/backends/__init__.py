"""What serves a model: anything that speaks OpenAI, and the demo backend."""
