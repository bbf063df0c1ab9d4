//! Which route a request takes. Pure.
//!
//! Invariant: the most specific route wins, whatever the order of the file: an exact host before a pattern before any, then the longest
//! path, then one that names the method.

use http::Method;

use crate::config::Route;

/// Which route, or why none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The route of this number.
    Route(usize),
    /// The path is known, by these methods.
    OtherMethods(Vec<Method>),
    /// Nothing is there.
    Nothing,
}

/// All routes, the most specific first.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    ordered: Vec<(usize, Route)>,
}

impl Routes {
    pub(crate) fn new(routes: &[Route]) -> Self {
        let mut ordered: Vec<_> = routes.iter().cloned().enumerate().collect();
        ordered.sort_by_key(|(_, route)| {
            let (host, length) = match &route.host {
                None => (2, 0),
                Some(host) if host.starts_with('*') => (1, host.len()),
                Some(host) => (0, host.len()),
            };
            let reversed = std::cmp::Reverse((length, route.path.length(), !route.methods.is_empty()));
            (host, reversed)
        });
        Self { ordered }
    }

    /// Finds the route of a request; `path` is normalized.
    pub(crate) fn find(&self, host: &str, path: &str, method: &Method) -> Found {
        let mut others = Vec::new();
        let matching = self.ordered.iter().filter(|(_, route)| {
            host_matches(route.host.as_deref(), host) && route.path.rest(path).is_some()
        });
        for (number, route) in matching {
            if route.methods.is_empty() || route.methods.contains(method) || is_preflight(route, method) {
                return Found::Route(*number);
            }
            others.extend(route.methods.iter().cloned());
        }
        if others.is_empty() { Found::Nothing } else { Found::OtherMethods(others) }
    }
}

/// A browser's question before the request is for the route of the request.
fn is_preflight(route: &Route, method: &Method) -> bool {
    route.cors.is_some() && method == Method::OPTIONS
}

fn host_matches(pattern: Option<&str>, host: &str) -> bool {
    match pattern {
        None => true,
        Some(pattern) => match pattern.strip_prefix('*') {
            Some(suffix) => {
                host.len() > suffix.len()
                    && host.as_bytes()[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix.as_bytes())
            }
            None => pattern.eq_ignore_ascii_case(host),
        },
    }
}

/// The path as the replica sees it.
pub(crate) fn rewritten(route: &Route, path: &str) -> Option<String> {
    let rewrite = route.rewrite.as_ref()?;
    let rest = route.path.rest(path).unwrap_or(path);
    Some(match (rewrite.is_empty(), rest.is_empty()) {
        (true, true) => "/".into(),
        _ => format!("{rewrite}{rest}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;
    use proptest::prelude::*;
    use std::path::Path;

    fn routes(text: &str) -> Vec<Route> {
        let routes = text
            .lines()
            .map(|line| format!("[[gateway.route]]\nservice = \"a\"\n{}\n", line.replace("; ", "\n")));
        let text = format!("[gateway]\n{}", routes.collect::<String>());
        Settings::read(&text, Path::new("/")).unwrap().unwrap().routes
    }

    fn name(found: Found, routes: &[Route]) -> String {
        match found {
            Found::Route(number) => routes[number].name.clone(),
            Found::OtherMethods(methods) => format!("{methods:?}"),
            Found::Nothing => "nothing".into(),
        }
    }

    #[test]
    fn the_most_specific_route_wins() {
        let routes = routes(
            "path = \"/\"; name = \"all\"\npath = \"/orders\"; name = \"orders\"\npath = \"/orders/new\"; name = \"new\"\n\
             path = \"/orders\"; methods = [\"DELETE\"]; name = \"delete\"\n\
             host = \"*.shop.example\"; path = \"/\"; name = \"shops\"\nhost = \"a.shop.example\"; path = \"/x\"; name = \"a\"",
        );
        let all = Routes::new(&routes);
        let find = |host, path, method| name(all.find(host, path, &method), &routes);
        assert_eq!(find("h", "/", Method::GET), "all");
        assert_eq!(find("h", "/orders", Method::GET), "orders");
        assert_eq!(find("h", "/orders/7", Method::GET), "orders");
        assert_eq!(find("h", "/ordersx", Method::GET), "all");
        assert_eq!(find("h", "/orders/new/1", Method::GET), "new");
        assert_eq!(find("h", "/orders/7", Method::DELETE), "delete");
        assert_eq!(find("b.Shop.example", "/orders", Method::GET), "shops");
        assert_eq!(find("shop.example", "/orders", Method::GET), "orders");
        assert_eq!(find("A.shop.example", "/x/y", Method::GET), "a");
        assert_eq!(find("a.shop.example", "/y", Method::GET), "shops");
    }

    #[test]
    fn another_method_is_told_from_nothing() {
        let routes = routes("path = \"/a\"; methods = [\"GET\", \"POST\"]");
        let all = Routes::new(&routes);
        assert_eq!(all.find("h", "/a", &Method::PUT), Found::OtherMethods(vec![Method::GET, Method::POST]));
        assert_eq!(all.find("h", "/b", &Method::GET), Found::Nothing);
    }

    #[test]
    fn a_prefix_is_taken_away_or_replaced() {
        let of = |line: &str| routes(line).remove(0);
        let strip = of("path = \"/orders\"; strip = true");
        assert_eq!(rewritten(&strip, "/orders/7").as_deref(), Some("/7"));
        assert_eq!(rewritten(&strip, "/orders").as_deref(), Some("/"));
        assert_eq!(rewritten(&strip, "/orders/").as_deref(), Some("/"));
        let other = of("path = \"/orders\"; rewrite = \"/v2/o\"");
        assert_eq!(rewritten(&other, "/orders/7").as_deref(), Some("/v2/o/7"));
        assert_eq!(rewritten(&other, "/orders").as_deref(), Some("/v2/o"));
        assert_eq!(rewritten(&of("path = \"/orders\""), "/orders/7"), None);
    }

    proptest! {
        #[test]
        fn a_found_route_has_no_longer_rival(path in "(/[ab]{1,2}){0,4}") {
            let path = if path.is_empty() { "/".to_owned() } else { path };
            let routes = routes("path = \"/\"\npath = \"/a\"\npath = \"/a/b\"\npath = \"/b\"\npath = \"/ab\"");
            let Found::Route(number) = Routes::new(&routes).find("h", &path, &Method::GET) else { panic!("no route") };
            let longest = routes.iter().filter(|route| route.path.rest(&path).is_some()).map(|route| route.path.length()).max();
            prop_assert_eq!(Some(routes[number].path.length()), longest);
        }
    }
}
