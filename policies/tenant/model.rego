# METADATA
# title: What a tenant denies on top of runtime.model
# description: Overlays add rules to this set. It is here so that without any it is empty, never undefined.
package tenant.model

import rego.v1

deny contains reason if some reason in object.keys({})
