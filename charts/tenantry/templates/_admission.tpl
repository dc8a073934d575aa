{{/*
Everybody who is held to the admission policies, as a CEL expression: all but the operator;
Kubernetes' own controllers, by their exact names; the kubelets, where pods are concerned; who
is exempt by the chart's values; and who may update Tenants, and so may make the operator do
the same. The question to the authorizer, the dearest, comes last.
*/}}
{{- define "tenantry.held" -}}
{{- $users := list (printf "system:serviceaccount:%s:tenantry" .Release.Namespace) "system:kube-controller-manager" "system:kube-scheduler" -}}
{{- range list "cronjob-controller" "daemon-set-controller" "deployment-controller" "device-taint-eviction-controller" "endpoint-controller" "endpointslice-controller" "endpointslicemirroring-controller" "generic-garbage-collector" "horizontal-pod-autoscaler" "job-controller" "legacy-service-account-token-cleaner" "namespace-controller" "node-controller" "persistent-volume-binder" "pod-garbage-collector" "replicaset-controller" "replication-controller" "service-account-controller" "statefulset-controller" "ttl-after-finished-controller" -}}
{{- $users = append $users (printf "system:serviceaccount:kube-system:%s" .) -}}
{{- end -}}
{{- $users = concat $users .Values.admissionPolicies.exempt.users -}}
!(request.userInfo.username in {{ $users | toJson }})
&& !(has(request.userInfo.groups) && 'system:nodes' in request.userInfo.groups
  && request.resource.group == '' && request.resource.resource in ['pods', 'serviceaccounts'])
{{- with .Values.admissionPolicies.exempt.groups }}
&& !(has(request.userInfo.groups) && request.userInfo.groups.exists(group, group in {{ . | toJson }}))
{{- end }}
&& !authorizer.group('tenantry.io').resource('tenants').check('update').allowed()
{{- end }}

{{/* Whether `metadata` (of the object or of the old one) marks an object as the operator's, or claims to. */}}
{{- define "tenantry.marked" -}}
(has({{ . }}.labels) && ('tenantry.io/tenant' in {{ . }}.labels || 'tenantry.io/pool' in {{ . }}.labels
  || 'tenantry.io/relay' in {{ . }}.labels
  || ('app.kubernetes.io/managed-by' in {{ . }}.labels && {{ . }}.labels['app.kubernetes.io/managed-by'] == 'tenantry')))
|| (has({{ . }}.managedFields) && {{ . }}.managedFields.exists(field, has(field.manager) && field.manager == 'tenantry'))
{{- end }}

{{/* The namespaces that the operator makes. Nobody else can label or unlabel one: policy tenantry-namespaces. */}}
{{- define "tenantry.namespaces" -}}
matchLabels:
  app.kubernetes.io/managed-by: tenantry
{{- end }}

{{/* Whose the namespace of a request is, as the variables of a policy. */}}
{{- define "tenantry.whose" -}}
- name: whose
  expression: >-
    'tenantry.io/tenant' in namespaceObject.metadata.labels
    ? 'Tenant ' + namespaceObject.metadata.labels['tenantry.io/tenant']
    : 'tenantry.io/pool' in namespaceObject.metadata.labels
    ? 'Pool ' + namespaceObject.metadata.labels['tenantry.io/pool']
    : 'tenantry.io/relay' in namespaceObject.metadata.labels
    ? 'the relay of DatabaseServer ' + namespaceObject.metadata.labels['tenantry.io/relay']
    : 'Tenantry'
{{- end }}
