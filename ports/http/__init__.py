"""The public contract that every HTTP surface speaks: both stacks, federation and administration.

Written once, framework-free (ASGI is dictionaries and callables): how a body is parsed, how an error looks, which
scope a route needs, how a request is correlated, how an event is framed. Endpoints live in the stacks.
"""
