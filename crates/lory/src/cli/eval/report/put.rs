//! `put!`, which appends to a page.

/// Like `writeln!`, for a string, which cannot fail.
macro_rules! put {
    ($page:expr, $($part:tt)*) => {{
        let _ = writeln!($page, $($part)*);
    }};
}
pub(crate) use put;
