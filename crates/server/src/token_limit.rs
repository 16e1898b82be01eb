//! The field `max_tokens`: a number, or -1 for as many as fit.

use serde::Deserialize;

/// `max_tokens`: the most new tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenLimit {
    /// This many.
    Tokens(usize),
    /// As many as fit into the context: -1, as in LM Studio.
    Context,
}

impl TokenLimit {
    /// The number of tokens; none for the context.
    pub fn tokens(self) -> Option<usize> {
        match self {
            TokenLimit::Tokens(tokens) => Some(tokens),
            TokenLimit::Context => None,
        }
    }
}

impl utoipa::PartialSchema for TokenLimit {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::Integer)
            .minimum(Some(-1))
            .into()
    }
}

impl utoipa::ToSchema for TokenLimit {}

impl<'de> Deserialize<'de> for TokenLimit {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = TokenLimit;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a whole number from 1, or -1 for as many as fit")
            }

            fn visit_u64<E>(self, tokens: u64) -> Result<TokenLimit, E> {
                // More than fit into a context are refused with the numbers.
                Ok(TokenLimit::Tokens(
                    usize::try_from(tokens).unwrap_or(usize::MAX),
                ))
            }

            fn visit_i64<E: serde::de::Error>(self, tokens: i64) -> Result<TokenLimit, E> {
                match u64::try_from(tokens) {
                    Ok(tokens) => self.visit_u64(tokens),
                    Err(_) if tokens == -1 => Ok(TokenLimit::Context),
                    Err(_) => {
                        let found = serde::de::Unexpected::Signed(tokens);
                        Err(E::invalid_value(found, &self))
                    }
                }
            }

            /// Languages with one type of number write 8 as 8.0.
            fn visit_f64<E: serde::de::Error>(self, tokens: f64) -> Result<TokenLimit, E> {
                let whole = tokens as i64;
                match whole as f64 == tokens && whole < i64::MAX {
                    true => self.visit_i64(whole),
                    false => {
                        let found = serde::de::Unexpected::Float(tokens);
                        Err(E::invalid_value(found, &self))
                    }
                }
            }
        }
        deserializer.deserialize_i64(Visitor)
    }
}
