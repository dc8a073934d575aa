//! A tenant's route.

use super::{Case, place::Place};
use crate::{
    api::Reason,
    cluster::{Key, Owner},
    controller::{failure::Failure, state::ChildState},
    desired::{self, Kind, RouteInput, RouteState, route_kind},
};

/// Sees to it that the tenant's hosts lead to its containers. Returns what is true of the route.
pub(super) async fn route(case: &Case<'_>, place: &Place) -> Result<(Reason, String), Failure> {
    let input = RouteInput {
        tenant: case.name,
        pool: place.pool.as_deref(),
        namespace: &place.namespace,
        application: case.application,
        hosts: &case.hosts,
    };
    if case.effective.suspended {
        prune(case, None).await?;
        return Ok(("Suspended", "the route is removed while the tenant is suspended".into()));
    }
    let (Some(spec), Some(object)) = (&case.application.spec.route, desired::route(&input)) else {
        prune(case, None).await?;
        return Ok(("NoRoute", "the Application has no route".into()));
    };
    if route_kind(spec) == Kind::HttpRoute && !case.world.serves_http_routes() {
        return Err(Failure::waiting(
            "GatewayApiMissing",
            "the cluster doesn't serve HTTPRoutes: install the Gateway API CRDs",
        ));
    }
    case.world.cluster.apply(&object).await?;
    prune(case, Some(object.kind)).await?;
    if !spec.require_accepted {
        return Ok(("NotRequired", "the route is there; whether a parent accepts it is not asked".into()));
    }
    match case.world.cluster.children().state(&Key::of(&object)) {
        Some(ChildState::Route(RouteState::Accepted)) => {
            Ok(("Accepted", "the route's parents have accepted it".into()))
        }
        Some(ChildState::Route(RouteState::Pending { message })) => Err(Failure::waiting("RoutePending", message)),
        Some(ChildState::Route(RouteState::Refused { reason, message })) => {
            Err(Failure::waiting("RouteRefused", format!("{reason}: {message}")))
        }
        _ => Err(Failure::waiting("RoutePending", "the route was made just now")),
    }
}

/// Removes routes of this tenant that are not wanted (any more), such as an Ingress after the
/// Application went over to a Gateway.
async fn prune(case: &Case<'_>, wanted: Option<Kind>) -> Result<(), Failure> {
    for key in case.world.cluster.children().of_owner(&Owner::Tenant(case.name.to_owned())) {
        if matches!(key.kind, Kind::HttpRoute | Kind::Ingress) && Some(key.kind) != wanted {
            case.world.cluster.delete(&key).await?;
        }
    }
    Ok(())
}
