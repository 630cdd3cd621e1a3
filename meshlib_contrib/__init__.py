"""Integrations of foreign frameworks and tools, one module each; meshlib never imports them."""
