//! Spans for the log, as `tracing` makes them. What they name (ids above all) is told of the
//! call's span in a trace, too, which is made before the request is decoded
//! ([`crate::spans`]).

/// A span of that level, for the log.
macro_rules! log_span {
    (@value $field:ident) => { $field };
    (@value $field:ident, $value:expr) => { $value };
    ($level:ident, $name:literal $(, $field:ident $(= $value:expr)?)*) => {{
        if $crate::spans::is_recording() {
            $($crate::spans::note(
                stringify!($field),
                &$crate::service::log_span::log_span!(@value $field $(, $value)?),
            );)*
        }
        ::tracing::$level!($name $(, $field $(= $value)?)*)
    }};
}

/// A span of calls that change something.
macro_rules! info_span {
    ($($span:tt)*) => { $crate::service::log_span::log_span!(info_span, $($span)*) };
}

/// A span of calls that only ask.
macro_rules! debug_span {
    ($($span:tt)*) => { $crate::service::log_span::log_span!(debug_span, $($span)*) };
}

pub(super) use {debug_span, info_span, log_span};
