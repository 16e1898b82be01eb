//! The layers around the routes: `request_log` around all of them, `cors` where origins are allowed, `auth` around those that need a
//! key.

pub(crate) mod auth;
pub(crate) mod cors;
pub(crate) mod request_log;
