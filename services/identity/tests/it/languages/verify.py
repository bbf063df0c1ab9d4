"""Verifies the token of TOKEN by what the discovery document of ISSUER says, and prints whose it is."""

import json
import os
import urllib.request

import jwt

issuer = os.environ["ISSUER"]
with urllib.request.urlopen(f"{issuer}/.well-known/openid-configuration") as answer:
    discovered = json.load(answer)
assert discovered["issuer"] == issuer, discovered
token = os.environ["TOKEN"]
key = jwt.PyJWKClient(discovered["jwks_uri"]).get_signing_key_from_jwt(token)
claims = jwt.decode(
    token,
    key,
    algorithms=discovered["id_token_signing_alg_values_supported"],
    audience="tombolo",
    issuer=issuer,
    options={"require": ["exp", "iat", "iss", "sub", "aud"]},
)
print(claims["sub"])
