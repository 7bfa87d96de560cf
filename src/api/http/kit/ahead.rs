//! Positions that callers name: one beyond the end was never handed out, and is refused. Otherwise it would be waited for in
//! vain, or be taken for a sign that the log has lost history.

use orgstream_events::OrgId;

use crate::{api::http::App, app::problem::Problem};

/// Refuses a position behind the last event of `org`, as the log itself has it now.
pub(crate) async fn is_reached(app: &App, org: OrgId, name: &str, seq: u64) -> Result<(), Problem> {
    if seq == 0 {
        return Ok(());
    }
    let placement = app.log.placement(org).await?.ok_or_else(Problem::not_found)?;
    let last = app.log.head(&placement).await?;
    if seq <= last { Ok(()) } else { Err(beyond(name, &format!("the last event of this organization is at {last}"))) }
}

/// Refuses an index of an audit log of `size` events behind its end, which is the index of the next event.
pub(crate) fn is_in_log(name: &str, idx: u64, size: u64) -> Result<(), Problem> {
    if idx <= size { Ok(()) } else { Err(beyond(name, &format!("the audit log has {size} events, counted from 0"))) }
}

fn beyond(name: &str, what_there_is: &str) -> Problem {
    let detail = format!("{name}: lies beyond what there is: {what_there_is}. Begin again without it.");
    Problem::new(400, "position_beyond_end", "Beyond the end", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_a_place_and_what_is_behind_it_is_none() {
        assert!(is_in_log("from_idx", 0, 0).is_ok() && is_in_log("from_idx", 7, 7).is_ok());
        let refused = is_in_log("from_idx", 8, 7).unwrap_err();
        assert_eq!((refused.status, refused.code), (400, "position_beyond_end"));
        assert!(refused.detail.starts_with("from_idx: ") && refused.detail.contains("7 events"), "{refused:?}");
    }
}
