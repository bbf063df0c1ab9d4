//! Access tokens (RFC 9068), verified as RFC 8725 advises.
//!
//! Pure: the caller brings the key and the time. Invariant: the algorithm is that of the key, which is of a list; what the token's
//! own header offers as a key, or as a place to find one, is never looked at.
//!
//! Sources: <https://www.rfc-editor.org/rfc/rfc9068>, <https://www.rfc-editor.org/rfc/rfc8725>.

use std::time::Duration;

use jiff::Timestamp;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{DecodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use super::User;

pub use jsonwebtoken::Algorithm;

/// The longest token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;
/// By how much the clocks of issuer and service may differ.
pub const LEEWAY: Duration = Duration::from_secs(5);
/// What the header's `typ` says of an access token.
pub const TYPE: &str = "at+jwt";
/// The longest `kid`, in bytes.
const KID_BYTES_MAX: usize = 128;

/// What an access token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who issued it.
    pub iss: String,
    /// Whom it speaks of.
    pub sub: String,
    /// Whom it is for.
    pub aud: Audience,
    /// When it ends, in seconds since 1970.
    pub exp: i64,
    /// When it was issued.
    pub iat: i64,
    /// When it begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    /// Its own name.
    pub jti: String,
    /// The program that asked for it.
    pub client_id: String,
    /// The session, by which it can be revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sid: Option<String>,
    /// The version of the user at which it was issued: a block of a later one ends it.
    #[serde(default)]
    pub ver: u64,
    /// What the user may do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
}

/// One audience or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Audience {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Audience {
    /// Whether `audience` is among them.
    #[must_use]
    pub fn has(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Many(many) => many.iter().any(|one| one == audience),
        }
    }
}

impl From<&Claims> for User {
    fn from(claims: &Claims) -> Self {
        let Claims { sub, sid, roles, client_id, ver, exp, .. } = claims.clone();
        Self { id: sub, session: sid, roles, client: client_id, version: ver, ends: Some(exp) }
    }
}

/// What a token has to be.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Who issued it, exactly.
    pub issuer: String,
    /// Whom it has to be for.
    pub audience: String,
    /// How it may be signed.
    pub algorithms: Vec<Algorithm>,
}

/// Why a token lets nobody in. For logs: whoever shows it is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is no token.
    #[error("it is not a signed token with a header that can be read")]
    Form,
    /// Its type is not the one that is expected here.
    #[error("its typ is not {0}")]
    Type(&'static str),
    /// Its algorithm is not one of the list, or not the key's.
    #[error("its alg is not one that is expected")]
    Algorithm,
    /// It names no key, or brings its own, or asks for what is not understood.
    #[error("its header names no key, brings one along, or has critical parts")]
    Header,
    /// Its signature is not the key's.
    #[error("its signature or its claims are wrong")]
    Signature,
    /// It is of another issuer or for another audience.
    #[error("its issuer or its audience is another")]
    Meant,
    /// It has ended, or has not begun.
    #[error("it has ended, or has not begun")]
    Time,
}

/// A key by which tokens are verified.
#[derive(Debug, Clone)]
pub struct Key {
    /// Its name.
    pub kid: String,
    /// The one algorithm that it is for.
    pub algorithm: Algorithm,
    pub(crate) decoding: DecodingKey,
}

impl Key {
    /// The key of a published form; none if it is not one to verify with, or not for one of `algorithms`.
    #[must_use]
    pub fn from_jwk(jwk: &Jwk, algorithms: &[Algorithm]) -> Option<Self> {
        let kid = jwk.common.key_id.clone().filter(|kid| !kid.is_empty() && kid.len() <= KID_BYTES_MAX)?;
        if jwk.common.public_key_use.as_ref().is_some_and(|used| *used != PublicKeyUse::Signature) {
            return None;
        }
        let named = jwk.common.key_algorithm.map(|named| named.to_string());
        let algorithm = *algorithms.iter().find(|algorithm| {
            fits(&jwk.algorithm, **algorithm)
                && named.as_ref().is_none_or(|named| *named == name(**algorithm))
        })?;
        Some(Self { kid, algorithm, decoding: DecodingKey::from_jwk(jwk).ok()? })
    }
}

/// Whether a key of this kind signs by this algorithm.
fn fits(key: &AlgorithmParameters, algorithm: Algorithm) -> bool {
    match (key, algorithm) {
        (AlgorithmParameters::EllipticCurve(ec), Algorithm::ES256) => ec.curve == EllipticCurve::P256,
        (AlgorithmParameters::EllipticCurve(ec), Algorithm::ES384) => ec.curve == EllipticCurve::P384,
        (AlgorithmParameters::OctetKeyPair(okp), Algorithm::EdDSA) => okp.curve == EllipticCurve::Ed25519,
        (
            AlgorithmParameters::RSA(_),
            Algorithm::RS256
            | Algorithm::RS384
            | Algorithm::RS512
            | Algorithm::PS256
            | Algorithm::PS384
            | Algorithm::PS512,
        ) => true,
        _ => false,
    }
}

fn name(algorithm: Algorithm) -> String {
    format!("{algorithm:?}")
}

impl Expected {
    /// Reads the token's header, and says which key to verify it by.
    ///
    /// # Errors
    /// [`Refused`] for what no key can mend.
    pub fn kid(&self, token: &str) -> Result<String, Refused> {
        read_header(token, &self.algorithms, TYPE)
    }

    /// Verifies a token by the key that [`Expected::kid`] named.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn verify(&self, token: &str, key: &Key, now: Timestamp) -> Result<Claims, Refused> {
        if !self.algorithms.contains(&key.algorithm) {
            return Err(Refused::Algorithm);
        }
        let mut validation = Validation::new(key.algorithm);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        // By the service's own clock instead, below.
        validation.validate_exp = false;
        let verified = jsonwebtoken::decode::<Claims>(token, &key.decoding, &validation);
        let claims = verified.map_err(|error| refused(&error))?.claims;
        if claims.sub.is_empty() || claims.iss != self.issuer || !claims.aud.has(&self.audience) {
            return Err(Refused::Meant);
        }
        claims.check_times(now)?;
        Ok(claims)
    }
}

impl Claims {
    pub(crate) fn check_times(&self, now: Timestamp) -> Result<(), Refused> {
        check_times(self.nbf.unwrap_or(self.iat).max(self.iat), self.exp, now)
    }
}

/// Reads the header of a token of the type `expected`, and says which key to verify it by.
pub(crate) fn read_header(
    token: &str,
    algorithms: &[Algorithm],
    expected: &'static str,
) -> Result<String, Refused> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Refused::Form);
    }
    let header = jsonwebtoken::decode_header(token).map_err(|_| Refused::Form)?;
    if !algorithms.contains(&header.alg) {
        return Err(Refused::Algorithm);
    }
    check_type(&header, expected)?;
    let brings = header.jku.is_some() || header.jwk.is_some() || header.x5u.is_some();
    if brings || header.x5c.is_some() || header.crit.is_some() || header.enc.is_some() || header.zip.is_some()
    {
        return Err(Refused::Header);
    }
    header.kid.filter(|kid| !kid.is_empty() && kid.len() <= KID_BYTES_MAX).ok_or(Refused::Header)
}

fn check_type(header: &Header, expected: &'static str) -> Result<(), Refused> {
    let found = header.typ.as_deref().unwrap_or_default().to_ascii_lowercase();
    let short = found.strip_prefix("application/").unwrap_or(&found);
    if short == expected { Ok(()) } else { Err(Refused::Type(expected)) }
}

/// Whether a token that begins and ends then, in seconds since 1970, is taken now.
pub(crate) fn check_times(begins: i64, ends: i64, now: Timestamp) -> Result<(), Refused> {
    let leeway = LEEWAY.as_secs().cast_signed();
    let now = now.as_second();
    // Compared without sums that a token's own numbers could overflow.
    let has_ended = now.saturating_sub(leeway) >= ends;
    if has_ended || begins > now.saturating_add(leeway) { Err(Refused::Time) } else { Ok(()) }
}

pub(crate) fn refused(error: &jsonwebtoken::errors::Error) -> Refused {
    use jsonwebtoken::errors::ErrorKind;
    match error.kind() {
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName | ErrorKind::InvalidKeyFormat => {
            Refused::Algorithm
        }
        ErrorKind::InvalidIssuer | ErrorKind::InvalidAudience | ErrorKind::InvalidSubject => Refused::Meant,
        _ => Refused::Signature,
    }
}
