"""Values and pure functions: text rules, tokenizer, prompt, masks, error rates, audio units."""
