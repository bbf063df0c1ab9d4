// Verifies the token of TOKEN by what the discovery document of ISSUER says, and prints whose it is.

const { pathToFileURL } = require('node:url');

(async () => {
  const jose = await import(pathToFileURL(require.resolve('jose')));
  const { ISSUER: issuer, TOKEN: token } = process.env;
  const discovered = await (await fetch(`${issuer}/.well-known/openid-configuration`)).json();
  const { payload } = await jose.jwtVerify(token, jose.createRemoteJWKSet(new URL(discovered.jwks_uri)), {
    issuer,
    audience: 'tombolo',
    typ: 'at+jwt',
    algorithms: discovered.id_token_signing_alg_values_supported,
    requiredClaims: ['exp', 'iat', 'sub'],
  });
  console.log(payload.sub);
})().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
