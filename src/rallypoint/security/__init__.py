"""Tokens that name a certificate authority, and TLS from them.

`token_form` reads a token's text; `authority` makes certificates; `tls` makes the contexts of both
sides; `first_look` learns a coordinator's authority before anything is said to it. Which token a
process uses, and where it comes from, is decided elsewhere.
"""
