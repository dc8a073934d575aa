//go:build tools

// The Gateway API's CRDs are taken from its module's files; this import keeps the
// module in go.mod and its hash in go.sum.
package main

import _ "sigs.k8s.io/gateway-api/apis/v1"
