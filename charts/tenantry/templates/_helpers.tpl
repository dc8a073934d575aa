{{/* Labels that find the operator's pods; a Deployment's selector can never change, so they are few. */}}
{{- define "tenantry.selectorLabels" -}}
app.kubernetes.io/name: tenantry
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{/* Labels of every object of the chart. */}}
{{- define "tenantry.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: tenantry
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: tenantry
{{- end }}

{{/* The operator's image. */}}
{{- define "tenantry.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The relays' image; never by the chart's own version either. */}}
{{- define "tenantry.relayImage" -}}
{{- if .Values.relay.image.digest -}}
{{ .Values.relay.image.repository }}@{{ .Values.relay.image.digest }}
{{- else -}}
{{ .Values.relay.image.repository }}:{{ .Values.relay.image.tag }}
{{- end -}}
{{- end }}

{{/* The agent's image; never by the chart's own version, which an upgrade changes. */}}
{{- define "tenantry.agentImage" -}}
{{- if .Values.agent.image.digest -}}
{{ .Values.agent.image.repository }}@{{ .Values.agent.image.digest }}
{{- else -}}
{{ .Values.agent.image.repository }}:{{ .Values.agent.image.tag }}
{{- end -}}
{{- end }}

{{/* The operator's own login in the ledger. */}}
{{- define "tenantry.ledgerUrl" -}}
- name: TENANTRY_LEDGER_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.ledger.secretName }}
      key: url
{{- end }}
